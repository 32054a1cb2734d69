#!/bin/sh
# Writes deploy/.env, deploy/webhook_token and deploy/keys with random secrets; what is there already stays.
set -eu
cd "$(dirname "$0")"
umask 077
touch .env
while IFS= read -r line; do
    if ! grep -q "^${line%%=*}=" .env; then
        case $line in
            KEYS_GROUP=) printf '%s%s\n' "$line" "$(id -g)" ;;
            [A-Z]*=) printf '%s%s\n' "$line" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
        esac >> .env
    fi
done < .env.example
# A file of its own, since Alertmanager reads its token from one; readable by its container's user.
if [ ! -e webhook_token ]; then
    sed -n 's/^ALERT_WEBHOOK_TOKEN=//p' .env > webhook_token
    chmod 644 webhook_token
fi
# The keys file holds hashes alone. The server's container is in the group that may read it.
if [ ! -e keys/keys ]; then
    mkdir -p keys
    hash=$(sed -n 's/^LEUKDETECT_ADMIN_KEY=//p' .env | tr -d '\n' | { sha256sum 2> /dev/null || shasum -a 256; })
    printf 'admin admin %s\n' "${hash%% *}" > keys/keys
    chgrp "$(sed -n 's/^KEYS_GROUP=//p' .env)" keys keys/keys
    chmod 750 keys
    chmod 640 keys/keys
fi
