"""What a server records and shows of its run."""
