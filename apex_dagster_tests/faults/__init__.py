"""Every fault at every step, on real servers: what a cell must end as is decided before it runs."""
