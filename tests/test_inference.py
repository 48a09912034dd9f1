import virtex
import virtex.inference


def test_the_handler_of_the_first_virtex_is_where_its_users_import_it_from():
    assert virtex.inference.__all__ == ["RequestHandler"]
    assert virtex.inference.RequestHandler is virtex.RequestHandler
