"""Coded ResNeXt (Avranas and Kountouris, NeurIPS 2022): paths of classes designed by coding theory."""
