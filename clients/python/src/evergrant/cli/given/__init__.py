"""What is given on the command line and in files: its forms, and what is refused before anything is sent."""
