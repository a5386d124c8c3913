"""Programs that use Pharaoh for what it is for: see README.md beside this file."""
