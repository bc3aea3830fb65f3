"""The networks behind the scores; each is loaded when a case first asks for it."""
