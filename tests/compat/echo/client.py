"""Sends texts of CONTENT_LENGTH characters."""

import settings

settings.load_test(["X" * int(settings.number("CONTENT_LENGTH", 100))])
