"""What monitoring asks for: numbers in Prometheus' text format."""
