"""Who fine-tunes a protected model: THE training loop, and the attackers that go through it."""
