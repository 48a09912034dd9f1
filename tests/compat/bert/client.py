"""Sends the lines of data/tweets.txt."""

import settings

settings.load_test([line.strip().lower() for line in (settings.DATA / "tweets.txt").read_text().splitlines()])
