"""What several published baselines and TinyMIG share: styles of features, partners, views, meta-learning, borders."""
