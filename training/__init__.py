"""Training: emoji scenes, a nano CLIP, its self-distillation, and EBSeg's own losses.

    emoji_packages → sprites → scenes      pictures with exact truth, from a seed
    clip_stage → distill_stage → ebseg_stage      the three stages, run by `loop`, put together in `recipes`
    evaluate, finish      choose the balance, write the weights

Nothing here is needed to export or to run a model.
"""
