"""CoDA Nets (Böhle, Fritz, Schiele, CVPR 2021): dynamic alignment units, hybrids, interpretable depth."""
