"""What outlives a process: run directories, checkpoints, exports."""
