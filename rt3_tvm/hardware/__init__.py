"""What the hardware does: measured latencies now, models of latency and energy beside them."""
