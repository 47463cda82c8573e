"""What a party's process leaves on its machine: files whole and private, its log, its metrics."""
