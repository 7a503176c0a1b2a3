"""OAuth2 access tokens for smarthosts: asked for, kept and renewed by the side that delivers.

    client      the [smarthost] table as an OAuth2 client: endpoints, scope, identity, where its tokens are
    access      ``access_token``: the one kept while it is valid, else a new one, asked for once
    grant       what a new one is asked for with: refresh token, client credentials, service account
    device      a user logs in on another device (RFC 8628)
    browser     a user logs in with a browser on this machine (RFC 6749 section 4.1, RFC 7636, RFC 8252)
    store       the file that keeps the tokens
    endpoint    one HTTPS request and its JSON answer
    failure     what can go wrong

No token and no secret is in an error, a ``repr`` or a trace.  Nothing here runs at a submission.
"""
