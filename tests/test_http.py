import virtex
import virtex.http


def test_the_names_of_the_first_virtex_are_where_its_users_import_them_from():
    assert virtex.http.http_server is virtex.http_server
    assert virtex.http.Server is virtex.Server
