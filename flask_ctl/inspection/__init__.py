"""What an operator can see of a serving process: its requests, threads, exceptions, log records and events."""
