"""What surrounds a site: satellite tiles, points of interest, text that describes both, and vectors of these (LSDM; LEC-Diff).

images       mercator -> tiles (folder, zip), url_tiles (a map service); landscape -> render (synthetic cities), service_scenes (the
             places of generated users); statistics of an image
points       poi: points with raw categories to counts by category
description  describe (facts, scenes, the template describer); endpoint -> chat, limits, answers (a vision model over HTTP), ledger
             (what it has cost)
refinement   refine -> sentences, lexicon, rules, checks, score: what of a description is kept, and why; agreement (an encoder's score)
vectors      encoder, contrastive (image and text into one space), fusion, embeddings (the store), places (sites from settings to pairs)
"""
