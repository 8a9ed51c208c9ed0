"""What goes inside any network: import the module that you need."""
