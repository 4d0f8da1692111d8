"""What memory and disks have room for, and pages of files that are mapped into memory."""
