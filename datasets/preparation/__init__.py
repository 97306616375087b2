"""From a data set as its authors distribute it to the layout of the built-in cards: images, labels, lists of ids.

Reading order: tree (the folders of a download), id_lists (which images, which split), plan (the pairs of a data set),
part_annotations and colour_labels (label maps that must be made), checking (one pair), output (the folder that is
written), report (what the user is told), command (the arguments, and the run from begin to end).
"""
