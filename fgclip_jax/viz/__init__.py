"""Drawing: heat maps, tables of box scores, contact sheets."""
