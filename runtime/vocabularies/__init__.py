"""The classes of six benchmarks, as data.

Each JSON file is a `class_names.Benchmark`, kept by hand. Names and their order are facts of the data set: they are
spelled as its label list spells them, because EBSeg's figures were made with prompts of exactly these spellings.
`synonyms` and `excludes` are this project's own. They serve the seen rule alone: the words of `coco-stuff-171.json`
are the training words, and a class is seen when one of its words is among them. `excludes` drops words where the
published split counts a class as new although its name, or a plural or an obvious synonym of it, is a training
word: ADE20K's "house" is one, its "step, stair" another. With these lists the rule gives the published split for
every class: 20 of 20 seen in VOC, 51 of 59 and 94 of 459 in PASCAL-Context, 67 of 150 and 115 of 847 in ADE20K.
"""
