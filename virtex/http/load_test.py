"""HttpLoadTest and what it gives, where the first Virtex's users import them from."""

from ..load.result import HttpLoadTest, LoadTestMetrics, LoadTestResult

__all__ = ["HttpLoadTest", "LoadTestMetrics", "LoadTestResult"]
