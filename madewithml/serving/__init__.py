"""The machinery behind the window: the app, its wire contract, and the queue to the engine."""
