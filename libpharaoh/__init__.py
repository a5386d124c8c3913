"""What an application imports: see `connect`."""
