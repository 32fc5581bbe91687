"""What every scripted model does: it calls one tool, then says what that answered."""

TOOL = "greet"
ARGUMENTS = {"name": "Alice"}
QUESTION = "Say hello to Alice."
EXPECTED = "Hello, Alice!"
