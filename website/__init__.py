"""What builds the site: formulas, figures, the reference of lazy rooms, and a check of it all."""
