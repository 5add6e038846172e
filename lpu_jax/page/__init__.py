"""`write_html`: a program as one page that opens in any browser, without a network and without other files."""

from lpu_jax.page.assemble import page_text as page_text
from lpu_jax.page.assemble import write_html as write_html
