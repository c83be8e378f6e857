"""Training core of lfd-toolkit. Importing it imports nothing: see the submodules."""
