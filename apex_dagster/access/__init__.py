"""Who may use the HTTP side, and for what."""
