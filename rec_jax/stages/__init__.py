"""The stages of a OneRec run; each wires a few parts and reads earlier stages through files."""
