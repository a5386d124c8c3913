"""What the command `pharaohctl` does. Empty: it is imported even where the packages that the command needs are not."""
