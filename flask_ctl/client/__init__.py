"""What other processes use: connections, and the calls that wait for a stop or a reload."""
