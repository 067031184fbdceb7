import shutil

import pytest


@pytest.fixture
def tokenizer():
    """One token a word, right padding by default: decoding has to pad on the left by itself."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *(f"w{number}" for number in range(28))]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="right",
        chat_template=(
            "{% for message in messages %}{{ message['content'] }} {% endfor %}"
            "{% if add_generation_prompt %}w9 {% endif %}"
        ),
    )


@pytest.fixture
def model(tokenizer):
    return make_model(tokenizer)


def make_model(tokenizer, seed=0, hidden=32):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.4,  # peaked enough that greedy choices are far from ties
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


@pytest.fixture
def new_model(tokenizer):
    return lambda **options: make_model(tokenizer, **options)


@pytest.fixture(scope="session")
def chromium(tmp_path_factory):
    """A headless Chromium that says what its console said."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not binary or not driver:
        pytest.skip("needs chromium and chromedriver on the PATH (Debian: chromium, chromium-driver)")
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium, part of the dev extra")
    from selenium.webdriver.chrome.service import Service
    from selenium.webdriver.support.wait import WebDriverWait

    class Patient(webdriver.Chrome):
        """Waits until a page's scripts have run: on a busy machine its driver may go on while the page is loading."""

        def get(self, url):
            super().get(url)
            self.wait()

        def back(self):
            super().back()
            self.wait()

        def wait(self):
            complete = "return document.readyState === 'complete'"
            WebDriverWait(self, 60).until(lambda page: page.execute_script(complete))

    options = webdriver.ChromeOptions()
    options.binary_location = binary
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(argument)
    session = Patient(options=options, service=Service(driver))
    yield session
    session.quit()
