"""A stand-in for an S3 store: moto's server on a free loopback port."""

import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import requests

KEYS = {"AWS_ACCESS_KEY_ID": "anyone", "AWS_SECRET_ACCESS_KEY": "any", "AWS_DEFAULT_REGION": "us-east-1"}


@contextmanager
def running(log_file: Path, bucket: str) -> Iterator[str]:
    """Yields the address of a store with one empty bucket, until the block ends."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with log_file.open("wb") as log:
        command = [str(Path(sys.executable).parent / "moto_server"), "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                requests.get(f"{address}/moto-api/", timeout=1).raise_for_status()
                break
            except requests.RequestException:
                assert time.monotonic() < deadline, log_file.read_text()
                time.sleep(0.1)
        client(address).create_bucket(Bucket=bucket)
        yield address
    finally:
        process.terminate()
        process.wait()


def client(address: str) -> boto3.client:
    """A client of the store at this address."""
    return boto3.client(
        "s3",
        endpoint_url=address,
        aws_access_key_id=KEYS["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=KEYS["AWS_SECRET_ACCESS_KEY"],
        region_name=KEYS["AWS_DEFAULT_REGION"],
    )
