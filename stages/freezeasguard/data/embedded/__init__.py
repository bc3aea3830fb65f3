"""Images that packages draw or ship: people, illustrators, logos, photographs of faces."""
