"""What the services of this process count, and of its siblings: counters that workers share, and who reads them."""
