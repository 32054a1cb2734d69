#!/bin/sh
# Writes deploy/.env and deploy/webhook_token with random secrets; what is there already stays.
set -eu
cd "$(dirname "$0")"
umask 077
if [ ! -e .env ]; then
    while IFS= read -r line; do
        case $line in
            *=) printf '%s%s\n' "$line" "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')" ;;
            *) printf '%s\n' "$line" ;;
        esac
    done < .env.example > .env
fi
# A file of its own, since Alertmanager reads its token from one; readable by its container's user.
if [ ! -e webhook_token ]; then
    sed -n 's/^ALERT_WEBHOOK_TOKEN=//p' .env > webhook_token
    chmod 644 webhook_token
fi
