"""Final answers of solutions: extraction, equivalence, graders."""
