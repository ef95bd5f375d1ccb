"""The glass-box CNN (after arXiv 2101.10443; the design is ours): orbits of templates, PCA, a classifier."""
