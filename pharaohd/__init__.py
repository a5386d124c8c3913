"""The Pharaoh daemon."""
