"""Training: emoji scenes, a nano CLIP, what it learns of regions, and EBSeg's own losses.

    emoji_packages → sprites → scenes      pictures with exact truth, from a seed
    clip_stage → distill_stage → window_stage → ebseg_stage      the stages, run by `loop`, put together in `recipes`
    evaluate, regions, finish      choose the balance, see where a decoder loses, write the weights

Nothing here is needed to export or to run a model.
"""
