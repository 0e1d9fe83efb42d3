"""What objectives are made of: verbs, laws and terms that several papers share."""
