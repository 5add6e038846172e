"""How much a policy costs in quality, on real weights and English text that comes with Python.

  text.py      passages and sentences of the language reference in the standard library
  language.py  SmolLM2: KL to the fp32 model, agreement of the likeliest token, perplexity
  sentences.py MiniLM: SQNR, cosine and nearest neighbours of embeddings
  run.py       functions under a policy: in the LPU's arithmetic, or plain JAX with rounded weights

The reference is always the same function as plain JAX runs it in fp32.
"""
