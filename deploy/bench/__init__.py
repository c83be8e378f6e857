"""`lfd-bench`: models beside their teacher, on this device."""
