"""Sends JPEG files, by encode_bytes."""

import settings

from virtex.serial import encode_bytes

images = sorted((settings.DATA / "tiny-imagenet-200/test/images").glob("*.JPEG"))
settings.load_test([path.read_bytes() for path in images], encode_bytes)
