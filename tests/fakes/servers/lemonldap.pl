# LemonLDAP::NG's portal on a port of loopback, for end-to-end tests (tests/fakes/providers/lemonldap.py).
# Its demonstration accounts are those that `POST /_test` adds; their sessions are files of the folder.
#
#   LLNG_DEFAULTCONFFILE=FOLDER/lemonldap.ini perl lemonldap.pl FOLDER PORT
use strict;
use warnings;
use HTTP::Server::PSGI;
use JSON;
use Lemonldap::NG::Portal::Main;
use Lemonldap::NG::Portal::UserDB::Demo;

my ( $folder, $port ) = @ARGV;
my $issuer = "http://127.0.0.1:$port";
my $users  = \%Lemonldap::NG::Portal::UserDB::Demo::demoAccounts;
my $random = sub { join '', map { sprintf '%04x', int rand 65536 } 1 .. 12 };
my ( $client, $secret ) = ( 'evergrant', $random->() );
%$users = ();

sub text {
    open my $file, '<', "$folder/$_[0]" or die "$folder/$_[0]: $!";
    local $/;
    return <$file>;
}

sub storage {
    mkdir "$folder/$_[0]";
    mkdir "$folder/$_[0]-lock";
    return { Directory => "$folder/$_[0]", LockDirectory => "$folder/$_[0]-lock",
        generateModule => 'Lemonldap::NG::Common::Apache::Session::Generate::SHA256' };
}

my $portal;
my $begin = sub {
    my ($redirect) = @_;
    $portal = Lemonldap::NG::Portal::Main->run( {
        portal => "$issuer/", domain => '127.0.0.1', securedCookie => 0, requireToken => 0, checkXSS => 0,
        locationRules => { '127.0.0.1' => { default => 'accept' } }, exportedHeaders => {},
        key => $random->(), logLevel => 'error', cspFormAction => '*', userControl => '^[\w.-]+$',
        map( { $_ => 0 } qw(captcha_mail_enabled captcha_register_enabled portalDisplayResetPassword portalDisplayRegister portalDisplayChangePassword) ),
        authentication => 'Demo', userDB => 'Same', passwordDB => 'Null', demoExportedVars => { uid => 'uid' },
        globalStorage => 'Apache::Session::File', globalStorageOptions => storage('sessions'),
        persistentStorage => 'Apache::Session::File', persistentStorageOptions => storage('kept'),
        oidcStorage => 'Apache::Session::File', oidcStorageOptions => storage('oidc'),
        templateDir => $ENV{LLNG_TEMPLATES}, staticPrefix => '/static',
        issuerDBOpenIDConnectActivation => 1,
        oidcServiceKeyIdSig => 'only', oidcServiceAllowOffline => 1,
        oidcServicePrivateKeySig => text('private.pem'), oidcServicePublicKeySig => text('public.pem'),
        oidcRPMetaDataExportedVars => { $client => { name => 'uid' } },
        oidcRPMetaDataOptions => { $client => {
            oidcRPMetaDataOptionsClientID => $client, oidcRPMetaDataOptionsClientSecret => $secret,
            oidcRPMetaDataOptionsRedirectUris => $redirect, oidcRPMetaDataOptionsBypassConsent => 1,
            oidcRPMetaDataOptionsIDTokenSignAlg => 'RS256', oidcRPMetaDataOptionsAccessTokenExpiration => 3600,
            oidcRPMetaDataOptionsAllowOffline => 1, oidcRPMetaDataOptionsRefreshToken => 1,
            oidcRPMetaDataOptionsRefreshTokenRotation => 1,
        } },
    } );
};

sub control {
    my ($env) = @_;
    read $env->{'psgi.input'}, my $body, $env->{CONTENT_LENGTH};
    my $wanted = decode_json($body);
    $begin->( $wanted->{redirect_uri} ) if $wanted->{redirect_uri};
    $users->{$_} = { uid => $_, cn => $_, mail => "$_\@example.org" } for grep { defined } $wanted->{add_user};
    delete $users->{ $wanted->{disable} } if $wanted->{disable};
    if ( my $user = $wanted->{end_grants_of} ) {
        chdir $folder;
        unlink grep { text($_) =~ /"\Q$user\E"/ } glob 'oidc/*';
    }
    my $answer = encode_json( { client_id => $client, client_secret => $secret } );
    return [ 200, [ 'Content-Type' => 'application/json' ], [$answer] ];
}

my $server = HTTP::Server::PSGI->new(
    host => '127.0.0.1', port => $port,
    server_ready => sub { $| = 1; print encode_json( { issuer => "$issuer/", control => "$issuer/_test" } ), "\n" },
);
$server->run( sub { $_[0]->{PATH_INFO} eq '/_test' ? control( $_[0] ) : $portal->( $_[0] ) } );
