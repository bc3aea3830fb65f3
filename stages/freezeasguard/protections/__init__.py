"""What makes a protected model of a published one: one module a method, registered in `registry`."""
