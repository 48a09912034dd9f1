"""A load test that counts from when a request was to be sent: its plan, the process that sends, what it found."""
