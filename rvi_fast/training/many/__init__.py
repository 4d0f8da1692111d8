"""Several runs side by side: in processes, or in turn in this one."""
